"""Tables, plots and the HTML page. Reads records only; never imports torch."""
