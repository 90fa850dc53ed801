"""The executor: ops, graph, plan, sessions, sampling."""
