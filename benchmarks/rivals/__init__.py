"""The programs that this project is compared with: they make the two requests of a message, without its guarantees."""
