"""Importers: one small file per product, each a pure `Format`; `registry` lists them."""
