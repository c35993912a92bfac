"""Where gallery rows are kept: memory, a folder, Qdrant, Milvus."""
