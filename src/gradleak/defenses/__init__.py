"""What a client can do to its update before sharing it. One stage, one file; the module's name is its name on
the command line. A defense ships its adaptive counterpart: what an attacker who knows it simulates. A defense must
not know any attack, metric or accountant.
"""
