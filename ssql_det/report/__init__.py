"""Result rows beside the published tables of SSQL, and pages as HTML, Markdown or LaTeX.

published           the published tables as values
table_sources       which rows belong to a published table, and the commands that produce them
row_groups          load rows and group those that may be averaged
comparison          a published table beside our rows: published, measured, difference
comparison_blocks   a comparison as blocks of a page
display_names       names of methods, networks, schemes and protocols as tables show them
blocks, document    a page as values; markup: inline code and links in its texts
render_*, charts    a page as HTML, Markdown, LaTeX; a chart as SVG; a comparison as CSV
page_files          write a page to disk; stylesheet: its colours and CSS
"""
