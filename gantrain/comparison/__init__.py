"""Comparison of finished runs: tables, figures and an HTML report.

`comparison` is what all of them are made from; open it first. `untrusted` and `runs` read run folders,
`configurations` groups runs and takes means over seeds, `statistics` tests their differences, `tables`, `rows`, `plots`
and `report` show them.
"""
