"""What the keeper's side of both walls needs: asking an agent, trees a container sees, processes that are shut in."""
