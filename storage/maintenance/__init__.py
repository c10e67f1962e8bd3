"""What reads or writes whole tables: the check of all books, and the copy into another database."""
