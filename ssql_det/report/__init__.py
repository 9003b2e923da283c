"""Tables from result rows alone, beside the published figures, with the difference; and pages as HTML or Markdown.

>>> table = compare(6, read_rows(["results.jsonl"]), scope="all")
>>> print(as_markdown(Document("", blocks_of(table))))
"""
