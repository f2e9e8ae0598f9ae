"""The program ``acp-store``: the schema, recordings and queries from a shell; needs the extra ``cli``."""
