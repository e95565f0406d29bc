"""Records to scored shards: tokens, the reference's log-probability, the weight that matches prompt distributions."""
