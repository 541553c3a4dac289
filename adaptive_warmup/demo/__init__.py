"""The demo: one task, one peak lr past what the run bears, three warmups side by side."""
