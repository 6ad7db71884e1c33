"""The comparison of finished runs: a table, figures and an HTML report.

`comparison` aggregates runs over their seeds; open it first. `runs` reads run folders, `plots` draws the figures, and
`report` writes the page.
"""
