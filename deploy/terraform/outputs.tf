output "table_name" {
  value       = aws_dynamodb_table.broker.name
  description = "DDB_TABLE_NAME, for the operator's commands."
}

output "table_arn" {
  value       = aws_dynamodb_table.broker.arn
  description = "The ARN of the table."
}

output "operator_policy_arn" {
  value       = aws_iam_policy.table["operator"].arn
  description = "For the operator who runs broker table create."
}

output "service_names" {
  value       = concat([for each in aws_ecs_service.scaled : each.name], [for each in aws_ecs_service.fixed : each.name])
  description = "The ECS services, for restarts and rollouts."
}
