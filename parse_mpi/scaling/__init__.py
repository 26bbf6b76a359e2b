"""How a job scales over ranks and nodes: a study of it, what that measured, and a cost model fitted to this."""
