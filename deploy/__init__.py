"""Programs of the containers in docker-compose.yml, and their start. Not installed; part of the repository."""
