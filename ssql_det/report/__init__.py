"""Compare result rows with the published tables of SSQL, and write pages as HTML, Markdown or LaTeX.

published           the published tables as values
table_sources       which result rows belong to a published table, and the commands that produce them
row_groups          load result rows and group the rows that may be averaged
comparison          a published table next to result rows: published, measured, difference
comparison_blocks   a comparison as blocks of a page
measured_detectors  result rows as detectors, each with the rows that may be averaged
cost_report         a page for any rows: what few bits cost
model_card          what a file of weights is, and its rows, as Hugging Face's hub reads it
display_names       how tables print methods, networks, schemes and protocols
blocks, document    a page as values; markup: inline code and links in a page's texts
render_*            a page as HTML, Markdown, LaTeX; a comparison as CSV
charts, scatter     a line chart and a scatter chart as SVG; svg_parts: what both are drawn with
page_files          write a page to disk; stylesheet, page_script: its colours, CSS and script
"""
