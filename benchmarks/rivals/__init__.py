"""Other ways of doing the same work: the two requests of a message, without this project's guarantees."""
