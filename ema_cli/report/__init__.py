"""An average for people to read: an HTML page with charts, and Markdown.

May import release and what is below it.
"""
