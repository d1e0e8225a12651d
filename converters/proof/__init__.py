"""Whether a form answers like its source, what it costs, and the page that shows both."""
