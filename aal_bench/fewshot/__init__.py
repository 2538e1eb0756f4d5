"""Episodes: how they are drawn, trained on and answered, by learn2learn's parts."""
