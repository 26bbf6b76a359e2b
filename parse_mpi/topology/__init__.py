"""Who talks to whom: graphs among the holders of a slice, their mixing matrices, and how fast these mix."""
