"""What a viewer shows, and when: pictures of any fineness, their order, the newest checkpoint of a run."""
