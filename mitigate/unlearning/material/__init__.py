"""What unlearning works on: the tasks with their fixed facts, and what the references and the model before say."""
