//! Data as a whole: it can be carried away, brought back, checked, and read by other versions, and stays what it was.

mod growth;
