"""What runs beside Ray on a machine of a cluster: it hears that the machine will be taken away, and tells Ray."""
