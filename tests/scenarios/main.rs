//! The real programs together: every scenario starts its own broker, worker, queue, database and neighbours, and ends
//! by asserting that nothing is left over.
