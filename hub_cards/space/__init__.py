"""A demonstration of a recommender as a Gradio page; it travels to a Space without this project."""
