"""Inside `exec_gate`: run the SQL, Python, maths and JSON of an answer, contained."""
