"""Tables from result rows alone, beside the published figures, with the difference.

>>> table = compare(6, read_rows(["results.jsonl"]), scope="all")
>>> print(as_markdown(table))
"""
