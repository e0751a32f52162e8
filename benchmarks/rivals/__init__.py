"""Other ways of doing the same work: the two requests of a message, without what this project adds to them."""
