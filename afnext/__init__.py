"""afnext: Audio Flamingo Next, fast and faithful."""
