"""The engine ``vllm``: vLLM writes the responses, in processes of its own or on a server."""
