"""What dialling costs beside planning for every size."""
