"""What the driver and its workers tell each other: names that both sides know."""

FACTOR = "adaptive_warmup_factor"  # with the batch: what the lr of its updates is to be multiplied by
SCHEDULED = "adaptive_warmup/scheduled_max_lr"  # among its metrics: the lr without that; verl takes a "max" of all
