"""What runs on Ray Serve: protocols, the wire, gateway, model replica, controller."""
