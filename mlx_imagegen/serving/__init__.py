"""A warm model behind HTTP and MCP: the queue, the worker, the interfaces that clients already have, and a page.

service.py joins the parts; server.py puts HTTP in front of them, mcp_server.py MCP.
"""
