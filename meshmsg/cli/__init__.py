"""The command line, behind the extra ``cli``: one file a verb, and what they share beside them."""
