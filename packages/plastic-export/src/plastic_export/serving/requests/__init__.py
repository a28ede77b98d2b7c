"""Requests before they are answered: what they may say, which size they name, who is next."""
