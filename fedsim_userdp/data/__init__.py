"""Corpora, users, records and tokens: everything between a user's text and the arrays a model trains on."""
