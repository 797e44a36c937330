"""Files and tables on disk: atomic writes, validated Parquet, manifests."""
