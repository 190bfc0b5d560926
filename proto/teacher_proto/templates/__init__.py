"""What both programs know of chat templates."""
