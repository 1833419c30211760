# The policies of deploy/iam, for this table only.
locals {
  policies = {
    api      = "Permissions of the Sandbox Broker API on its table"
    worker   = "Permissions of Sandbox Broker workers on their table"
    operator = "Permissions of the commands broker table create and accept on the Sandbox Broker table"
  }
}

resource "aws_iam_policy" "table" {
  for_each = local.policies

  name        = "${var.table_name}-${each.key}"
  description = each.value
  policy = replace(
    file("${path.module}/../iam/${each.key}.json"),
    "arn:aws:dynamodb:*:*:table/SandboxPool",
    aws_dynamodb_table.broker.arn,
  )
}

locals {
  for_tasks = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
    }]
  })
}

# Beat and the console need no role. An operator attaches the policy `operator` to a role of their own.
resource "aws_iam_role" "task" {
  for_each = toset(["api", "worker"])

  name               = "sandbox-broker-${each.key}"
  assume_role_policy = local.for_tasks
}

resource "aws_iam_role_policy_attachment" "task" {
  for_each = aws_iam_role.task

  role       = each.value.name
  policy_arn = aws_iam_policy.table[each.key].arn
}

# What ECS itself does to start a task: fetch the image, read the secrets, write the log.
resource "aws_iam_role" "execution" {
  name               = "sandbox-broker-execution"
  assume_role_policy = local.for_tasks
}

resource "aws_iam_role_policy" "execution" {
  name = "start-tasks"
  role = aws_iam_role.execution.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Effect = "Allow"
          # AWS lets no resource be named for this action.
          Action   = ["ecr:GetAuthorizationToken"]
          Resource = "*"
        },
        {
          Effect   = "Allow"
          Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
          Resource = var.image_repository_arn
        },
        {
          Effect   = "Allow"
          Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
          Resource = "${aws_cloudwatch_log_group.broker.arn}:*"
        },
        {
          Effect   = "Allow"
          Action   = ["secretsmanager:GetSecretValue", "ssm:GetParameters"]
          Resource = [for reference in values(var.secrets) : reference if reference != null]
        },
      ],
      length(var.secret_key_arns) == 0 ? [] : [
        {
          Effect   = "Allow"
          Action   = ["kms:Decrypt"]
          Resource = var.secret_key_arns
        },
      ],
    )
  })
}
