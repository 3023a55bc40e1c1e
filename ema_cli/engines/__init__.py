"""Many machines: an average cut into tasks, and those who do them: workers of an engine, or parts without one."""
