"""What all routes on our port share, whoever answers them: the error envelope, pages, and what happens at the edge."""
