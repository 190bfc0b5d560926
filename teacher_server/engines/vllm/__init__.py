"""The engine ``vllm``: vLLM computes the hidden states, in processes of its own."""
