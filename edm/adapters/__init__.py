"""Networks and pipelines of other libraries as this project's own; none is imported before use."""
