"""What a competition's input folder holds, as a stand-in: inference servers that a gateway asks over gRPC."""
