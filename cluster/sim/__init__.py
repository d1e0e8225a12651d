"""Production's policies in virtual time: gateways, replicas and scaling decisions as a discrete-event simulation."""
