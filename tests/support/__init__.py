"""What several tests share: networks, data, references written by hand, processes that may be killed."""
