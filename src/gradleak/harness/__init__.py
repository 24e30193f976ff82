"""Plan → cells → records: the only place that runs attacks, judges them and keeps what came out.

Rooms, from the top: predict and doctor · bounds, captured, utility · running · judging · request. Must not know the report
or the command line.
"""
