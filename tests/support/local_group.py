"""What a rank knows of its machine, for two processes: a file of its own, so that they can import it."""

from ssql_det import d2


def write_local_ranks(directory):
    d2.create_local_group()
    d2.create_local_group()  # a second time changes nothing
    (directory / str(d2.comm.get_rank())).write_text(f"{d2.comm.get_local_rank()} of {d2.comm.get_local_size()}")
