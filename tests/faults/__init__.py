"""The real processes under faults: a site that can be hurt, a nemesis that hurts it by a seeded plan, scenarios that
count what clients, database and files say afterwards.

The full size is `make faults`; a small one of each scenario is part of `make test`.
"""
