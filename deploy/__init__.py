"""What the containers of docker-compose.yml run, and what starts them. Not installed; part of the repository."""
